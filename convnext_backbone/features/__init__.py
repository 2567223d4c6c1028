"""Features of images: extraction, storage, pictures and the local page."""
