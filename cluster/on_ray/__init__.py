"""Everything that speaks to a Ray cluster while a run trains: the session, its workers, its nodes."""
