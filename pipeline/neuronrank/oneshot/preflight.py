"""What can be refused before the forward pass, which may take hours."""

from neuronrank.checkpoint import ModelArtifact
from neuronrank.collection import CollectParams
from neuronrank.oneshot.model_alone import manifest_of
from neuronrank.oneshot.request import Request
from neuronrank.params import validate
from neuronrank.planning import require_sufficient
from neuronrank.pruning import pruned_head, selected_modules
from neuronrank.scores import score_header


def require_possible(model: ModelArtifact, request: Request) -> None:
    """Refuse a request that this model, or what would be collected of it, cannot serve.

    Raises:
        UnknownName: no layout for this architecture.
        ParamsError: more layers than the model has, nothing to prune, or statistics that would not be kept.
        MismatchError: a weight is missing, or a tied head may not be untied.
    """
    header = score_header(manifest_of(model), request.name, request.recipe)
    selected_modules(header, request.pattern)
    pruned_head(model, header, request.pattern)
    collect = validate(CollectParams, request.collect, "collect")
    n_documents = request.prepare["calibration_windows"]
    require_sufficient(collect, n_documents, request.recipe, f"--prune_method {request.name}")
