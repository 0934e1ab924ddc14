"""Everything that knows there is more than one process: loop, engines, checkpoints, faults, record, Ray."""
