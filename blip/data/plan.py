"""The order of samples: a pure function of the data, the seed and the batch, independent of processes."""

from collections.abc import Iterator, Sequence

import numpy as np

from blip.config import ConfigError


class Plan:
    """The order of samples over endless epochs; any step is computed directly.

    An epoch concatenates the shards in a random order. Its streams are equal, adjacent ranges of that line; a batch
    takes the same number of samples from each stream, which draws them at random from a moving window of a few shards.
    So each stream needs a few open shards at a time, and a part of a batch needs only some of the streams. If there are
    no more shards than streams, the whole epoch is one window. The samples that do not fill a last batch are left out,
    others in each epoch.
    """

    def __init__(self, counts: Sequence[int], seed: int, batch: int, streams: int, window: int):
        """`counts`: samples of each shard; `batch`: samples of a step; `streams`: the largest number of streams;
        `window`: shards of a stream's window. Raises ConfigError if the data is smaller than a batch."""
        self.counts = np.asarray(counts, np.int64)
        self.seed = seed
        self.batch = batch
        self.total = int(self.counts.sum())
        if self.total < batch:
            raise ConfigError(
                f"loader.batch is {batch}, but the data has {self.total} samples: "
                "a batch cannot be larger than the data"
            )
        self.steps = self.total // batch
        few = len(counts) <= streams
        self.streams = 1 if few else max(n for n in range(1, streams + 1) if batch % n == 0)
        self.each = batch // self.streams
        self.length = self.steps * self.each
        self.window = self.length if few else max(1, window * self.total // len(counts))
        self.epoch = -1
        self.windows: dict[int, tuple[int, np.ndarray]] = {}

    def rows(self, step: int, begin: int, end: int) -> np.ndarray:
        """Returns shard and row `(end - begin, 2)` of the samples `begin` to `end` of a step's batch; steps count over
        all epochs."""
        return self.locate(np.concatenate([self.shuffled(*part) for part in self.parts(step, begin, end)]))

    def shards(self, step: int, begin: int, end: int) -> set[int]:
        """Returns the shards that the windows of these samples touch."""
        found: set[int] = set()
        for stream, first, last in self.parts(step, begin, end):
            _, low, _ = self.window_at(stream, first)
            _, _, high = self.window_at(stream, last - 1)
            (left, before), (right, after) = self.places(np.array([low, high - 1]) + stream * self.length)
            between = (
                self.order[left : right + 1]
                if before <= after
                else np.append(self.order[left:], self.order[: right + 1])
            )
            found.update(between.tolist())
        return found

    def parts(self, step: int, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yields stream, first and last position in it, of a range of a batch."""
        epoch, step = divmod(step, self.steps)
        self.start_epoch(epoch)
        for stream in range(begin // self.each, -(-end // self.each)):
            first = max(begin - stream * self.each, 0)
            last = min(end - stream * self.each, self.each)
            yield stream, step * self.each + first, step * self.each + last

    def start_epoch(self, epoch: int) -> None:
        """Computes the order of an epoch's shards, unless it is the current one."""
        if epoch == self.epoch:
            return
        rng = np.random.default_rng([self.seed, epoch])
        self.epoch = epoch
        self.windows = {}
        self.order = rng.permutation(len(self.counts))
        self.ends = np.cumsum(self.counts[self.order])
        self.rotation = int(rng.integers(self.total))

    def shuffled(self, stream: int, first: int, last: int) -> np.ndarray:
        """Returns positions on the epoch's line for the positions `first` to `last` of a stream."""
        found = []
        while first < last:
            number, low, high = self.window_at(stream, first)
            known, permutation = self.windows.get(stream, (-1, np.empty(0, np.int64)))
            if known != number:
                permutation = np.random.default_rng([self.seed, self.epoch, stream, number]).permutation(high - low)
                self.windows[stream] = number, permutation
            found.append(permutation[first - low : last - low] + low)
            first += len(found[-1])
        return np.concatenate(found) + stream * self.length

    def window_at(self, stream: int, place: int) -> tuple[int, int, int]:
        """Returns number, first and last position of the window at a position of a stream. Streams change windows at
        different times."""
        shift = self.window * stream // self.streams
        number = (place + shift) // self.window
        return number, max(0, number * self.window - shift), min(self.length, (number + 1) * self.window - shift)

    def locate(self, line: np.ndarray) -> np.ndarray:
        """Returns shard and row `(N, 2)` of positions on the epoch's line."""
        places, positions = self.places(line).T
        shards = self.order[places]
        return np.stack([shards, positions - self.ends[places] + self.counts[shards]], 1)

    def places(self, line: np.ndarray) -> np.ndarray:
        """Returns the shard's index in the epoch's order, and the rotated position, `(N, 2)` of positions on the
        epoch's line."""
        positions = (line + self.rotation) % self.total
        return np.stack([np.searchsorted(self.ends, positions, side="right"), positions], 1)


class Course:
    """The order of a run: `lead` steps of a plan over some of the shards, then the plan over all."""

    def __init__(self, then: Plan, first: Plan | None = None, numbers: Sequence[int] = (), lead: int = 0):
        """`numbers`: the number in `then` of each shard of `first`."""
        self.then = then
        self.first = first
        self.numbers = np.asarray(numbers, np.int64)
        self.lead = lead if first else 0

    def rows(self, step: int, begin: int, end: int) -> np.ndarray:
        """As `Plan.rows`."""
        if not self.first or step >= self.lead:
            return self.then.rows(step - self.lead, begin, end)
        shards, rows = self.first.rows(step, begin, end).T
        return np.stack([self.numbers[shards], rows], 1)

    def shards(self, step: int, begin: int, end: int) -> set[int]:
        """As `Plan.shards`."""
        if not self.first or step >= self.lead:
            return self.then.shards(step - self.lead, begin, end)
        return {int(self.numbers[shard]) for shard in self.first.shards(step, begin, end)}

    def epoch(self, step: int) -> int:
        """Returns the epoch of a step; the lead's epochs come first, and its last one may be cut short."""
        if not self.first:
            return step // self.then.steps
        if step < self.lead:
            return step // self.first.steps
        return -(-self.lead // self.first.steps) + (step - self.lead) // self.then.steps
