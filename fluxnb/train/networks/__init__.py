"""The networks of a pocket pipeline, the judge that evaluates its pictures and the critic of the distillation."""
