"""The Azure app: one app object, one list of blueprints; no logic."""

import azure.durable_functions as df
import azure.functions as func

from functions import activities, alerts, api_read, api_write, commands, datasets, queued_events, runs, schedules
from orchestrators import deploy, intake, respond, train

app = df.DFApp(http_auth_level=func.AuthLevel.FUNCTION)

doors = (datasets, commands, alerts, api_read, api_write, runs, queued_events, schedules)
flows = (intake, train, deploy, respond)
for module in (*doors, activities, *flows):
    app.register_functions(module.bp)
