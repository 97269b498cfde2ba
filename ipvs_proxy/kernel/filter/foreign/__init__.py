"""Rules of other programs between clients and Services, whichever packet filter the agent uses for its own."""
