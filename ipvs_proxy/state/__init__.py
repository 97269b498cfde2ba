"""What is balanced where, and why: desired and actual tables as documents for people and programs."""
