from .comfyui import comfy_workflow as comfy_workflow
from .imported import Imported as Imported
from .importing import import_recipe as import_recipe
from .png import encode_png as encode_png
from .png import open_recipe as open_recipe
from .png import write_png as write_png
from .trajectory_files import open_trajectory as open_trajectory
from .trajectory_files import save as save
