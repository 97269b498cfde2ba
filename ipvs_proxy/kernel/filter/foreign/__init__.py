"""Rules of others that stand between clients and Services, whichever packet filter ours are kept in."""
