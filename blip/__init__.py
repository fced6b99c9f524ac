"""BLIP's bootstrapping: a model that captions the web, filters the captions and learns again from what is left."""
