"""The Azure app: one app object, one list of blueprints; no logic."""

import azure.durable_functions as df
import azure.functions as func

from functions import activities, api, datasets, runs, schedules
from orchestrators import deploy, intake, train

app = df.DFApp(http_auth_level=func.AuthLevel.FUNCTION)

for module in (datasets, api, runs, schedules, activities, intake, train, deploy):
    app.register_functions(module.bp)
