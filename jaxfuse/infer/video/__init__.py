"""Fusing what moves: `fuse_frames` for arrays from cameras, `files.fuse_videos` for files.

Only what concerns files imports PyAV.
"""

from __future__ import annotations

from jaxfuse.infer.video.frames import fuse_frames

READ_EXTENSIONS = frozenset(
    ".mp4 .m4v .mov .mkv .webm .avi .ts .mts .m2ts .mpg .mpeg .wmv .flv .3gp .ogv .mxf".split()  # noqa: SIM905
)
"""File name endings, lower case, by which videos are known; those that are written are fewer
(`writing.WRITTEN_EXTENSIONS`)."""

__all__ = ["READ_EXTENSIONS", "fuse_frames"]
