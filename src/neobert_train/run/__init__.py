"""What a run leaves on the disk: its directory, its checkpoints, its metrics, folders put in place whole."""
