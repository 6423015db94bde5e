"""Videos re-encoded so that random clips are cheap to decode, and lists checked by decoding every file.

A prepared file is H.264 in MP4 without sound: frame i is frame i of the source as `decode` counts and turns it,
shown at i / fps seconds; short GOPs, no B-frames, no CABAC, no deblocking. Every video is worked on in a child
process of its own: a decoder that hangs or crashes costs that video only.

Beside the prepared files and the new list, the folder holds

- `manifest.csv`: a row (MANIFEST) for each prepared video, written as soon as its file is there;
- `quarantine.csv`: `path,reason` of the list's videos that could not be prepared;
- `prepare.json`: the settings, the same for all files in it.
"""

from __future__ import annotations

from video_gn.data.prepare.check import check_list as check_list
from video_gn.data.prepare.check import read_report as read_report
from video_gn.data.prepare.folder import prepare_list as prepare_list
from video_gn.data.prepare.processes import in_children as in_children
