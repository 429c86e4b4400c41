"""The loop, what it keeps on disk, and what it learns from. Here programs are jitted.

May import core, scratch, report and all before them.
"""
