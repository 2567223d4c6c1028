"""Images: on disk, as values, how they are read and prepared."""
