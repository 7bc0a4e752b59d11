"""The networks of a pocket pipeline, the judge that reads its pictures, and the critic of the distillation."""
