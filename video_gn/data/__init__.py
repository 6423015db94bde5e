"""Lists, sampling, decoding, loading and augmentation of videos."""
