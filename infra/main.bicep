// Everything that Dropforge needs in one resource group. Parameters come from main.parameters.json, which azd fills from its
// environment; docs/deploy.md goes through them in order. docs/cost.md says what it costs.
targetScope = 'resourceGroup'

@description('Name of the azd environment.')
@minLength(1)
@maxLength(64)
param environmentName string

@description('Region of everything.')
param location string = resourceGroup().location

@description('Principal of who provisions; may drop the first file. Empty: nobody.')
param principalId string = ''

@description('What that principal is.')
@allowed(['User', 'Group', 'ServicePrincipal'])
param principalType string = 'User'

@description('How many copies of each file there are, and where.')
@allowed(['Standard_LRS', 'Standard_ZRS', 'Standard_GRS', 'Standard_GZRS'])
param storageRedundancy string = 'Standard_LRS'

@description('Container that people drop files into.')
param dropContainer string = 'drops'

@description('Days after which what a run was asked and what it left is deleted; models and evidence are kept elsewhere.')
@minValue(7)
param runDays int = 90

@description('Days after which quarantined files are deleted.')
@minValue(7)
param quarantineDays int = 180

@description('Days that logs are kept.')
@minValue(30)
@maxValue(730)
param logDays int = 31

@description('The most logs that may come in on a day, in GB; -1: no limit.')
param logDailyLimitGB int = 2

@description('Where flows keep their history.')
@allowed(['azureStorage', 'durableTaskScheduler'])
param durableBackend string = 'azureStorage'

@description('Memory of an instance of the app.')
@allowed([512, 2048, 4096])
param instanceMemoryMB int = 2048

@description('The most instances of the app at a time.')
@minValue(1)
@maxValue(1000)
param maximumInstances int = 40

@description('Instances that are always there for requests, and as many for flows; 0: the app starts cold.')
@minValue(0)
param alwaysReady int = 0

@description('Machine of the training cluster.')
param gpuVmSize string = 'Standard_NC4as_T4_v3'

@description('The most nodes of the training cluster; the least is 0.')
@minValue(1)
param gpuMaxNodes int = 2

@description('How long an idle node waits for another job (ISO 8601).')
param gpuIdleTime string = 'PT5M'

@description('Whether the nodes are low priority: cheaper, and they can be taken away at any time.')
param lowPriority bool = false

@description('Image of the training node, as <registry>/<name>:<tag>; empty until it is built.')
param trainImage string = ''

@description('Image of the inference server; empty until it is built. Another one is rolled out blue/green.')
param serveImage string = ''

@description('Machine of the inference servers.')
param serveInstanceType string = 'Standard_DS3_v2'

@description('How many inference servers there are.')
@minValue(1)
@maxValue(100)
param serveInstances int = 1

@description('Processes of each inference server, which hold all models each; 0: one on each core or GPU.')
@minValue(0)
@maxValue(256)
param serveWorkers int = 0

@description('Share of the requests that the inference servers keep for monitoring, as 0.01 or <endpoint>=<share>, with commas between; empty: of none.')
param serveLogRequests string = ''

@description('After how many days requests that were kept are deleted.')
@minValue(1)
param requestLogDays int = 90

@description('Whether to make the online endpoint. infra/hooks/preprovision.py sets it, and only while there is no endpoint.')
param createEndpoint bool = false

@description('Whether to make a Databricks workspace.')
param databricks bool = false

@description('Schema whose volumes are the containers, as /Volumes/<catalog>/<schema>; empty until it is made.')
param databricksVolumes string = ''

@description('Where the wheel lies for Databricks jobs, a path in a volume or the workspace; empty until it is there.')
param databricksWheel string = ''

@description('Whether everything is reached through private endpoints only.')
param privateNetworking bool = false

@description('Addresses of the virtual network, a /24 or larger.')
param networkPrefix string = '10.60.0.0/24'

@description('Client id of the Entra application that guards the app; empty: function keys only, and no alerts to the app.')
param apiClientId string = ''

@description('Object id of that application.')
param apiObjectId string = ''

@description('What opens the app: function keys and tokens, or tokens only.')
@allowed(['key', 'entra'])
param httpAuth string = 'key'

@description('Roles of function keys: the first 16 hex digits of each key\'s sha256, =, role, with commas between (docs/api.md).')
param keyRoles string = ''

@description('Role of a function key that is not among them.')
@allowed(['reader', 'operator', 'approver', 'none'])
param defaultKeyRole string = 'approver'

@description('Addresses that alerts and the budget are told to, with commas between.')
param alertEmails string = ''

@description('A 95th percentile of the endpoint\'s answers above this, in milliseconds, is told.')
@minValue(1)
param latencyMilliseconds int = 500

@description('What a month may cost, in the currency of the subscription; 0: no budget.')
@minValue(0)
param budgetAmount int = 0

@description('First day of the month that the budget starts with, as 2026-12-01. Azure refuses to change it later.')
param budgetStart string = ''

var token = toLower(uniqueString(resourceGroup().id, environmentName, location))
var tags = { 'azd-env-name': environmentName }
var emails = filter(map(split(alertEmails, ','), each => trim(each)), each => !empty(each))
var scheduled = durableBackend == 'durableTaskScheduler'
var packageContainer = 'app-package'
var deadLetterContainer = 'undelivered-events'

module identities 'modules/identities.bicep' = {
  name: 'identities'
  params: { location: location, token: token, tags: tags }
}

module monitoring 'modules/monitoring.bicep' = {
  name: 'monitoring'
  params: { location: location, token: token, tags: tags, retentionDays: logDays, dailyLimitGB: logDailyLimitGB }
}

// Three accounts. The host's holds flows, keys and the ledger, and only the app gets in. The lake's has real folders, which
// an account of a workspace must not have. The workspace's holds what Azure ML keeps for itself.
module hostStorage 'modules/storage.bicep' = {
  name: 'storage-host'
  params: {
    location: location
    name: 'sthost${token}'
    tags: tags
    redundancy: storageRedundancy
    containers: [packageContainer, deadLetterContainer]
    tables: ['dropforge']
    privateNetworking: privateNetworking
  }
}

module lake 'modules/storage.bicep' = {
  name: 'storage-lake'
  params: {
    location: location
    name: 'stlake${token}'
    tags: tags
    redundancy: storageRedundancy
    hierarchical: true
    containers: [dropContainer, 'artifacts', 'tables', 'runs', 'serving']
    expiries: [
      { name: 'runs', prefix: 'runs/', days: runDays }
      { name: 'quarantine', prefix: 'artifacts/quarantine/', days: quarantineDays }
      { name: 'requests', prefix: 'serving/logs/', days: requestLogDays }
    ]
    privateNetworking: privateNetworking
  }
}

module workspaceStorage 'modules/storage.bicep' = {
  name: 'storage-workspace'
  params: {
    location: location
    name: 'stml${token}'
    tags: tags
    redundancy: storageRedundancy
    containers: []
    privateNetworking: privateNetworking
  }
}

module messaging 'modules/messaging.bicep' = {
  name: 'messaging'
  params: { location: location, name: 'sb-${token}', tags: tags, privateNetworking: privateNetworking }
}

module topic 'modules/topic.bicep' = {
  name: 'topic'
  params: {
    location: location
    name: 'evgt-${token}'
    tags: tags
    appPrincipalId: identities.outputs.appPrincipalId
    privateNetworking: privateNetworking
  }
}

module registry 'modules/registry.bicep' = {
  name: 'registry'
  params: { location: location, name: 'cr${token}', tags: tags, privateNetworking: privateNetworking }
}

module vault 'modules/vault.bicep' = {
  name: 'vault'
  params: { location: location, name: 'kv-${token}', tags: tags, privateNetworking: privateNetworking }
}

module durable 'modules/durable.bicep' = if (scheduled) {
  name: 'durable'
  params: {
    location: location
    name: 'dts-${token}'
    tags: tags
    appPrincipalId: identities.outputs.appPrincipalId
    appClientId: identities.outputs.appClientId
  }
}

module roles 'modules/roles.bicep' = {
  name: 'roles'
  params: {
    hostAccount: hostStorage.outputs.name
    lakeAccount: lake.outputs.name
    dropContainer: dropContainer
    workspaceAccount: workspaceStorage.outputs.name
    serviceBus: messaging.outputs.name
    registry: registry.outputs.name
    vault: vault.outputs.name
    insights: monitoring.outputs.insightsName
    replicasIdentity: identities.outputs.replicasName
    appPrincipalId: identities.outputs.appPrincipalId
    jobsPrincipalId: identities.outputs.jobsPrincipalId
    replicasPrincipalId: identities.outputs.replicasPrincipalId
    workspacePrincipalId: identities.outputs.workspacePrincipalId
    operatorPrincipalId: principalId
    operatorPrincipalType: principalType
    privateNetworking: privateNetworking
  }
}

module workspace 'modules/workspace.bicep' = {
  name: 'workspace'
  params: {
    location: location
    name: 'mlw-${token}'
    tags: tags
    storageAccountId: workspaceStorage.outputs.id
    vaultId: vault.outputs.id
    insightsId: monitoring.outputs.insightsId
    registryId: registry.outputs.id
    lakeId: lake.outputs.id
    lakeName: lake.outputs.name
    logsId: monitoring.outputs.logsId
    workspaceIdentityId: identities.outputs.workspaceId
    workspacePrincipalId: identities.outputs.workspacePrincipalId
    jobsIdentityId: identities.outputs.jobsId
    replicasIdentityId: identities.outputs.replicasId
    replicasPrincipalId: identities.outputs.replicasPrincipalId
    appPrincipalId: identities.outputs.appPrincipalId
    clusterName: 'gpu'
    gpuVmSize: gpuVmSize
    gpuMaxNodes: gpuMaxNodes
    gpuIdleTime: gpuIdleTime
    lowPriority: lowPriority
    endpointName: 'ep-${token}'
    createEndpoint: createEndpoint
    privateNetworking: privateNetworking
  }
  dependsOn: [roles]
}

module events 'modules/events.bicep' = {
  name: 'events'
  params: {
    location: location
    token: token
    tags: tags
    lakeId: lake.outputs.id
    dropContainer: dropContainer
    workspaceId: workspace.outputs.id
    serviceBus: messaging.outputs.name
    queueName: messaging.outputs.eventsQueue
    deadLetterAccount: hostStorage.outputs.name
    deadLetterContainer: deadLetterContainer
  }
}

module databricksWorkspace 'modules/databricks.bicep' = if (databricks) {
  name: 'databricks'
  params: { location: location, token: token, tags: tags, lakeAccount: lake.outputs.name }
}

module network 'modules/network.bicep' = if (privateNetworking) {
  name: 'network'
  params: { location: location, token: token, tags: tags, addressPrefix: networkPrefix }
}

var always = {
  DROPFORGE_ADAPTERS: 'azure'
  DROPFORGE_DROPS: 'azure'
  DROPFORGE_DROP_CONTAINER: dropContainer
  DROPFORGE_STORAGE: lake.outputs.url
  DROPFORGE_LEDGER: hostStorage.outputs.url
  DROPFORGE_HTTP_AUTH: httpAuth
  DROPFORGE_KEY_ROLES: keyRoles
  DROPFORGE_DEFAULT_KEY_ROLE: defaultKeyRole
  // Each look is a step of a flow, and is paid for: events wake flows long before.
  DROPFORGE_RUN_POLL_SECONDS: '60'
  DROPFORGE_DEPLOY_POLL_SECONDS: '10'
  DROPFORGE_EVENTS_TOPIC_ENDPOINT: topic.outputs.endpoint
  DROPFORGE_AML_WORKSPACE: workspace.outputs.id
  DROPFORGE_AML_CLUSTER: workspace.outputs.clusterName
  DROPFORGE_AML_JOB_CLIENT_ID: identities.outputs.jobsClientId
  DROPFORGE_AML_ENDPOINT: workspace.outputs.endpointName
  // As in workspace.bicep, for the case that the app has to make the endpoint anew.
  DROPFORGE_AML_ENDPOINT_AUTH: 'aad_token'
  DROPFORGE_AML_ENDPOINT_PUBLIC: privateNetworking ? 'false' : 'true'
  DROPFORGE_TRAIN_IMAGE: trainImage
  DROPFORGE_SERVE_IMAGE: serveImage
  DROPFORGE_SERVE_INSTANCE_TYPE: serveInstanceType
  DROPFORGE_SERVE_INSTANCES: string(serveInstances)
  DROPFORGE_SERVE_WORKERS: string(serveWorkers)
  DROPFORGE_SERVE_LOG_REQUESTS: serveLogRequests
  DROPFORGE_SERVE_IDENTITY: identities.outputs.replicasId
  DROPFORGE_SERVE_CLIENT_ID: identities.outputs.replicasClientId
}

// host.json says Azure Storage; these say otherwise, as settings that begin so always do.
var onScheduler = scheduled
  ? {
      AzureFunctionsJobHost__extensions__durableTask__hubName: durable.outputs.hubName
      AzureFunctionsJobHost__extensions__durableTask__storageProvider__type: 'azureManaged'
      AzureFunctionsJobHost__extensions__durableTask__storageProvider__connectionStringName: 'DURABLE_TASK_SCHEDULER_CONNECTION_STRING'
      DURABLE_TASK_SCHEDULER_CONNECTION_STRING: durable.outputs.address
    }
  : {}

// The app refuses to start with a host and no volumes, so both are told or neither.
var onDatabricks = databricks && length(databricksVolumes) > 0
  ? {
      DROPFORGE_DATABRICKS_HOST: databricksWorkspace.outputs.host
      DROPFORGE_DATABRICKS_VOLUMES: databricksVolumes
      DROPFORGE_DATABRICKS_WHEEL: databricksWheel
    }
  : {}

module app 'modules/app.bicep' = {
  name: 'app'
  params: {
    location: location
    token: token
    tags: tags
    identityId: identities.outputs.appId
    identityClientId: identities.outputs.appClientId
    hostAccount: hostStorage.outputs.name
    hostBlobEndpoint: hostStorage.outputs.blobEndpoint
    packageContainer: packageContainer
    appSettings: union(always, onScheduler, onDatabricks)
    insightsAddress: monitoring.outputs.insightsAddress
    serviceBusHost: messaging.outputs.host
    instanceMemoryMB: instanceMemoryMB
    maximumInstances: maximumInstances
    alwaysReady: alwaysReady
    apiClientId: apiClientId
    tokensOnly: httpAuth == 'entra'
    subnetId: privateNetworking ? network.outputs.appSubnetId : ''
    privateNetworking: privateNetworking
  }
  dependsOn: [roles]
}

module privateEndpoints 'modules/private-endpoints.bicep' = if (privateNetworking) {
  name: 'private-endpoints'
  params: {
    location: location
    token: token
    tags: tags
    subnetId: network.outputs.endpointSubnetId
    zones: network.outputs.zones
    hostAccountId: hostStorage.outputs.id
    lakeId: lake.outputs.id
    workspaceAccountId: workspaceStorage.outputs.id
    serviceBusId: messaging.outputs.id
    vaultId: vault.outputs.id
    registryId: registry.outputs.id
    topicId: topic.outputs.id
    workspaceId: workspace.outputs.id
    appId: app.outputs.id
  }
}

module alerts 'modules/alerts.bicep' = {
  name: 'alerts'
  params: {
    location: location
    token: token
    tags: tags
    emails: emails
    appHost: app.outputs.host
    apiClientId: apiClientId
    apiObjectId: apiObjectId
    insightsId: monitoring.outputs.insightsId
    serviceBusId: messaging.outputs.id
    eventTopicIds: [events.outputs.lakeTopicId, events.outputs.workspaceTopicId]
    endpointId: '${workspace.outputs.id}/onlineEndpoints/${workspace.outputs.endpointName}'
    latencyMilliseconds: latencyMilliseconds
  }
}

module budget 'modules/budget.bicep' = if (budgetAmount > 0) {
  name: 'budget'
  params: {
    token: token
    amount: budgetAmount
    startDate: budgetStart
    actionGroupId: alerts.outputs.actionGroupId
    emails: emails
  }
}

output AZURE_FUNCTION_APP string = app.outputs.name
output AZURE_FUNCTION_APP_HOST string = app.outputs.host
output AZURE_CONTAINER_REGISTRY_NAME string = registry.outputs.name
output AZURE_CONTAINER_REGISTRY_ENDPOINT string = registry.outputs.server
output AZURE_ML_WORKSPACE string = workspace.outputs.name
output AZURE_ML_ENDPOINT string = workspace.outputs.endpointName
output DROPFORGE_STORAGE_ACCOUNT string = lake.outputs.name
output DROPFORGE_DROPS_CONTAINER string = dropContainer
output AZURE_SERVICE_BUS_HOST string = messaging.outputs.host
