"""Small named things on photographs: the generator of images and questions that the next default is trained on."""
