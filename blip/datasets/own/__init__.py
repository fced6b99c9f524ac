"""Own data in any usual form: images with texts in tables, annotation files, files beside them, or tars."""

from blip.datasets.own.config import Files
from blip.datasets.own.entries import NO_TEXT, Entries, Entry, Form, Split
from blip.datasets.own.guess import forms_of, in_place

__all__ = ["NO_TEXT", "Entries", "Entry", "Files", "Form", "Split", "forms_of", "in_place"]
