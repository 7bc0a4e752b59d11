from .explorer import Explorer as Explorer
from .explorer import explore as explore
from .lab import Lab as Lab
from .scrubber import Scrubber as Scrubber
from .scrubber import scrub as scrub
