"""What is balanced where, and why: the desired and actual tables as documents for people and programs."""
