"""What can be refused before the forward pass, which may take hours."""

from neuronrank.checkpoint import ModelArtifact
from neuronrank.collection import CollectParams
from neuronrank.oneshot.request import Request
from neuronrank.output_head import find_output_head
from neuronrank.params import validate
from neuronrank.planning import require_sufficient
from neuronrank.pruning import selected_modules
from neuronrank.scores import scored_parts
from neuronrank.streaming import layout_of


def require_possible(model: ModelArtifact, request: Request) -> None:
    """Refuse a request that this model, or what would be collected of it, cannot serve.

    Raises:
        UnknownName: no layout for this architecture.
        ParamsError: more layers than the model has, nothing to prune, or statistics that would not be kept.
        MismatchError: a tied head that may not be untied.
    """
    config = model.description["config"]
    layout = layout_of(config["model_type"])
    n_layers = config["num_hidden_layers"]
    modules = [
        {"part": role.part, "layer": layer, "neuron_tap": role.neuron_tap}
        for layer in range(n_layers)
        for role in layout.linears
    ]
    header = {"recipe": request.name, "n_layers": n_layers, "modules": modules, "parts": scored_parts(request.recipe)}
    selected_modules(header, request.pattern)
    if request.pattern.params.lm_head:
        names = {"module": layout.lm_head, "embeddings": layout.embeddings}
        find_output_head(model, names, request.pattern.params.untie_lm_head)
    collect = validate(CollectParams, request.collect, "collect")
    n_documents = request.prepare["calibration_windows"]
    require_sufficient(collect, n_documents, request.recipe, f"--prune_method {request.name}")
