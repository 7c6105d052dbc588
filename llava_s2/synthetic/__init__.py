"""Small named things on photographs: the generator of images and questions that the embedded default was trained on."""
