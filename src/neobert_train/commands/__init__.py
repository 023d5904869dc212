"""One composition root a command: `run(config, world)`."""
