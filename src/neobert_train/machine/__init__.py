"""What this machine is and how it is used: devices and their speed, versions, threads."""
