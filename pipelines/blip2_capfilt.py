"""The pipeline of BLIP-2 on CapFilt's texts: of several captions and the web text those most similar to an image."""

from kfp import dsl

from components.capfilt import capfilt
from components.fetch_role import fetch_role
from components.ingest import ingest
from components.make_frozen import make_frozen
from components.plan import plan
from components.report_blip2 import report_blip2
from components.select import select
from pipelines.blip2_steps import STAGES, Blip2Steps
from pipelines.placement import not_cached, on_cpu


@dsl.pipeline(name="blip2_capfilt")
def blip2_capfilt(
    store: str,
    bootstrap: str = "models:/blip@champion",
    captioner: str = "",
    filter: str = "",
    source: str = "shapes",
    preset: str = "blip2_capfilt_shapes",
    overrides: list[str] = [],  # noqa: B006
    name: str = "blip2-capfilt",
    placement: str = "cpu",
    max_gpu_hours: float = 0.0,
):
    """Trains BLIP-2 on the texts that CapFilt makes of web images (BLIP-2, section 3.4), and on the web's texts alone.

    1. plan: check all settings and the files that they name
    2. captioner: copy the model that writes captions
    3. filter: copy the model that scores how well texts match
    4. ingest: read gold, web and test pairs into shards, train the tokenizer
    5. capfilt: write several captions of every web image, score all texts
    6. select: keep the texts of each image that are most similar to it
    7. frozen: train small frozen models, unless the settings name others
    8. features: keep the features of the images with the selected texts, if the settings ask for them
    9. stage1: learn on the selected texts to find in images what texts say
    10. features-web: the same features with the web's texts as they are
    11. stage1-web: learn the same on the web's texts as they are
    12. stage2-opt: let a frozen decoder-only language model read what is found
    13. evaluate-opt: describe the test images, answer questions about them
    14. stage2-opt-web: the same on the web's texts as they are
    15. evaluate-opt-web: describe the test images, answer questions about them
    16. register-opt: let the model through the gate into the registry
    17. stage2-t5: let a frozen language model with an encoder read what is found
    18. evaluate-t5: describe the test images, answer questions about them
    19. stage2-t5-web: the same on the web's texts as they are
    20. evaluate-t5-web: describe the test images, answer questions about them
    21. register-t5: let the model through the gate into the registry
    22. report: put figures, curves and pictures on one page

    Captioner and filter are those by which the bootstrap made the data of its model `bootstrap`, unless `captioner` and
    `filter` name others from wherever the verbs take them, such as a BLIP-2 of its second and of its first stage, or
    `filter=openai/clip-vit-large-patch14` as in the paper. All else is as of the pipeline of BLIP-2; the gate of each
    language model compares its model with the one on the web's texts, and with the champion of its name.
    """
    parameters = {"name": name, "source": source, "preset": preset, "overrides": overrides, "store": store}
    planned = plan(pipeline="blip2_capfilt", **parameters, placement=placement, max_gpu_hours=max_gpu_hours)
    settings = not_cached(on_cpu(planned, "plan")).outputs
    shared = {"preset": preset, "store": store}
    web = on_cpu(ingest(**shared, source=source, settings=settings["ingest"]), "ingest").outputs["Output"]
    frozen = on_cpu(make_frozen(**shared, settings=settings["frozen"]), "frozen").outputs["Output"]
    steps = Blip2Steps(settings, shared, test=web, frozen=frozen)

    models = {}
    for role, given in (("captioner", captioner), ("filter", filter)):
        fetched = fetch_role(**shared, role=role, source=given, bootstrap=bootstrap).after(planned)
        models[role] = steps.small(not_cached(fetched), role)
    scored = steps.large(capfilt(**shared, settings=settings["capfilt"], data=web, **models), "capfilt")
    selected = steps.small(select(**shared, settings=settings["select"], scored=scored), "select")

    first, first_web = steps.first_stage(selected), steps.first_stage(web, "-web")
    decisions = {}
    for kind in STAGES:
        joined = steps.second_stage(kind, selected, init=first)
        as_it_is = steps.second_stage(kind, web, "-web", init=first_web)
        decisions[kind] = steps.gate(name, kind, joined, as_it_is)
    on_cpu(report_blip2(store=store, settings=settings["report"], **decisions), "report")
