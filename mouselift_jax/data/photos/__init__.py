"""One photo: read, cut out, centred; the face found."""
