"""video_gn: 3D ConvNets with Group Normalization, trained and tested on video.

Importing the package imports nothing heavy, so that every tool's ``--help`` answers at once.
"""

__version__ = "0.1.0"
