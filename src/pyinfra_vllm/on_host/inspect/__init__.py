"""Read-only looks at a host for facts: cards, driver, checkpoints, runtimes, disks."""
