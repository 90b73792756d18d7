"""In place of the commands of a study: what they leave behind, and one that fails."""


def make_run_chains(key, begun, leave, error):
    """What stands in for `tools.stages.run_chains`.

    Args:
        key: str, what it must be called with.
        begun: list, to which the name of every row that is begun is added. The second
            one fails.
        leave: callable from a row of stages to their markers.
        error: what the second one raises.
    """

    def run_chains(chains, folder, num_workers, given_key, environment):
        assert given_key == key
        assert environment["TF_NUM_INTRAOP_THREADS"] == "1"
        for index, chain in enumerate(chains):
            begun.append(chain[0].name)
            if len(begun) == 2:
                raise error
            yield index, leave(chain)

    return run_chains
