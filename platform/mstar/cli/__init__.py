"""The `mstar` command line: one table of jobs, configs from recipes and flags."""
