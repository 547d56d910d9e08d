"""What facts ask of a host: cards, driver, checkpoints, runtimes, disks."""
