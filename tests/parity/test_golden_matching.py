"""A filter that leaves [CLS] first, as one part of the reference does: its logits and similarities."""

from golden_files import Golden, assert_close

from blip.models.med import MED
from blip.models.weights.load import load_weights


def test_matching_and_similarity_are_the_references(golden: Golden):
    io, meta = golden.io("itm"), golden.meta["itm"]
    model = MED(golden.med(enc_token=False), decoder=False).eval()
    load_weights(model, golden.weights("itm"))
    text = golden.tokenizer.encode(meta["captions"], meta["max_length"], "max")
    tokens = model.encode_image(io["image"])
    assert_close(model.match(text, model.text_encoder.cross_keys_values(tokens)), io["itm_logits"])
    assert_close(model.image_feature(tokens) @ model.text_feature(model.encode_text(text)).T, io["itc"])
