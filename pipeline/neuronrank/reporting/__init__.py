"""Tables, plots and the report page, made of what the stages before measured."""
