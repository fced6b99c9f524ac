import pytest

from blip.report.charts import Block, Tick, graph, histogram, line_chart, short, thinned, ticks


def test_ticks_are_round():
    assert ticks(0, 500, 4) == [0, 200, 400]
    assert ticks(0.33, 0.68, 4) == pytest.approx([0.4, 0.5, 0.6])
    assert ticks(3, 3, 4) == [3]
    assert [short(v) for v in (0.5, 12, 3000, 1_200_000)] == ["0.5", "12", "3k", "1.2M"]


def test_a_line_runs_from_its_first_to_its_last_point():
    chart = line_chart(
        {"pretrain": [(0, 4.0), (50, 3.0), (100, 2.0)], "filter": [(0, 4.0), (50, 2.0)]}, width=200, height=100
    )
    points = [[tuple(map(float, p.split(","))) for p in line.path[1:].split("L")] for line in chart.lines]
    assert [[x for x, _ in line] for line in points] == [[0, 100, 200], [0, 100]]
    assert points[0][1][1] == 50
    assert points[0][0][1] < points[0][1][1] < points[0][2][1]
    assert points[0][2][1] == points[1][1][1]
    assert [line.last for line in chart.lines] == ["2", "2"]
    assert [tick.label for tick in chart.x] == ["0", "50", "100"]


def test_long_curves_are_means_and_values_that_are_no_numbers_are_left_out():
    assert thinned([(step, float(step % 2)) for step in range(1000)], most=100) == [
        (10 * i + 4, 0.5) for i in range(100)
    ]
    assert thinned([(0, 1.0), (1, float("nan")), (2, float("inf")), (3, 2.0)]) == [(0, 1.0), (3, 2.0)]


def test_a_histogram_stacks_its_kinds():
    chart = histogram({"true": [0, 3], "false": [4, 1]}, mark=0.5, width=100, height=80)
    assert chart.mark == Tick(50, "0.5")
    assert chart.blocks == [
        Block(0.75, 0, 48.5, 80, "false", "4 false, score 0.00 to 0.50"),
        Block(50.75, 20, 48.5, 60, "true", "3 true, score 0.50 to 1.00"),
        Block(50.75, 0, 48.5, 20, "false", "1 false, score 0.50 to 1.00"),
    ]
    assert histogram({"unknown": [0, 0]}).blocks == []


def test_a_node_stands_after_its_last_parent():
    nodes = [
        ("ingest", (), 5.0, False),
        ("pretrain", ("ingest",), 10.0, True),
        ("captioner", ("ingest", "pretrain"), 2.0, False),
        ("filter", ("ingest", "pretrain"), None, False),
        ("capfilt", ("captioner", "filter"), 1.0, False),
    ]
    drawn = graph(nodes, box=(100, 40), gap=20)
    place = {box.name: box.at for box in drawn.boxes}
    assert [place[name][0] for name, *_ in nodes] == [0, 120, 240, 240, 360]
    assert place["captioner"][1] < place["pretrain"][1] < place["filter"][1]
    assert (drawn.width, drawn.height) == (460, 92)
    assert {box.name: box.share for box in drawn.boxes} == {
        "ingest": 0.5,
        "pretrain": 1,
        "captioner": 0.2,
        "filter": 0,
        "capfilt": 0.1,
    }
    assert [box.name for box in drawn.boxes if box.alarm] == ["pretrain"]
    assert len(drawn.edges) == 5, "ingest reaches captioner and filter through pretrain"


def test_an_edge_may_pass_where_no_box_stands():
    column = [(name, ("a",), 1.0, False) for name in ("b", "middle", "short")]
    drawn = graph(
        [("a", (), 1.0, False), *column, ("c", ("b", "middle"), 1.0, False), ("end", ("c", "short"), 1.0, False)]
    )
    assert len(drawn.edges) == 7
