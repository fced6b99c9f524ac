"""Images with texts in files beside them, which differ in their extension alone."""

from collections import Counter
from collections.abc import Iterator
from functools import partial

from blip.datasets.own.config import Hints
from blip.datasets.own.entries import Entry, Form, split_of
from blip.datasets.own.place import MISSING, Place, is_image
from blip.shards.layout import select_members, unpack
from blip.shards.names import TEXT_EXTENSIONS, group_members, image_extensions
from blip.shards.sample import BadSample, Sample
from blip.shards.sources import Stamps
from blip.shards.tar import Member
from blip.storage import MissingKeyError


class TextsBeside(Form):
    """Files that are grouped by their names as the members of a tar are."""

    def __init__(self, place: Place, hints: Hints):
        self.place, self.hints = place, hints
        self.total = sum(map(is_image, place.chosen))
        endings = Counter(key.rpartition(".")[2].lower() for key in place.around)
        wanted = hints.layout.text_extension
        texts = [f".{ending}" for ending in (*TEXT_EXTENSIONS, "json", wanted) if endings[ending]] or ["none"]
        self.words = f"{self.total:,} images with texts beside them ({', '.join(dict.fromkeys(texts))})"
        self.settings = {"form": "texts", "keys": hints.layout.keys}

    def stamps(self) -> Stamps:
        return self.place.around

    def groups(self, counts: Counter[str]) -> Iterator[list[Entry]]:
        keys = [*self.place.around]
        chosen = frozenset(self.place.chosen)
        # a member's offset is the file's position
        found = group_members((Member(key, i, 0) for i, key in enumerate(keys)), self.hints.layout.keys, counts)
        entries = []
        for members in found.values():
            images = [keys[members[name][0]] for name in image_extensions(members)]
            if chosen.issuperset(images):
                files = {ending: keys[i] for ending, (i, _) in members.items()}
                entries.append(Entry(images[0], partial(self.load, images[0], files), split_of(images[0])))
        self.total = len(entries)
        yield entries

    def load(self, name: str, files: dict[str, str]) -> Sample:
        """Returns the sample of files by extension."""
        needed, _ = select_members(dict.fromkeys(files, (0, 0)), self.hints.layout, chosen=False)
        try:
            contents = {ending: self.place.store.get(files[ending]) for ending in needed}
        except MissingKeyError:  # the listing is older
            raise BadSample(MISSING) from None
        sample = unpack("0", contents, self.hints.layout)
        sample.meta["file"] = name
        return sample
