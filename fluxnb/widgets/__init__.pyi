from .drawing import Canvas as Canvas
from .drawing import canvas as canvas
from .explorer import Explorer as Explorer
from .explorer import explore as explore
from .lab import Lab as Lab
from .scrubber import Scrubber as Scrubber
from .scrubber import scrub as scrub
from .shapes import shape as shape
