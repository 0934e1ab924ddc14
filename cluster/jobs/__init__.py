"""Jobs of the Ray Jobs API: submitted, followed, stopped, and submitted again when their driver died."""
