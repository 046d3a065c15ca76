"""The jail: where code that a model wrote runs, without network, home, environment, processes and files to write."""
