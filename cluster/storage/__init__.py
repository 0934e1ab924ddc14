"""Where runs live: a file system or an object store, behind one set of words (`operations`)."""
