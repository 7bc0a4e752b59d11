"""How good a pocket model is: what is measured, with intervals, against which targets."""
