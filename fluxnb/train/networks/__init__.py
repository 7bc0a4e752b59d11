"""The networks of a pocket pipeline and the critic that distillation trains against."""
