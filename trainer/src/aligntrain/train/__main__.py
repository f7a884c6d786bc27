"""One process of a run: `python -m aligntrain.train RUN_FOLDER`."""

from aligntrain.train.main import main

raise SystemExit(main())
