// Who may do what with data. Each role is given on the smallest thing that will do: a container, a queue, and on an account
// only where the Functions host makes containers of its own. What is given on the workspace stands in workspace.bicep.
@description('Account of the Functions host, with the ledger and the flows of Durable Functions.')
param hostAccount string

@description('Account of the data.')
param lakeAccount string

@description('Container that people drop files into.')
param dropContainer string

@description('Account that the Azure ML workspace keeps its own files in.')
param workspaceAccount string

@description('Service Bus namespace.')
param serviceBus string

@description('Registry of the images.')
param registry string

@description('Vault of the workspace.')
param vault string

@description('Application Insights.')
param insights string

@description('Name of the identity that replicas run as.')
param replicasIdentity string

@description('Principal of the app.')
param appPrincipalId string

@description('Principal that jobs run as.')
param jobsPrincipalId string

@description('Principal that replicas run as.')
param replicasPrincipalId string

@description('Principal of the workspace.')
param workspacePrincipalId string

@description('Principal of the person or pipeline that provisions; empty: nobody.')
param operatorPrincipalId string

@description('What that principal is.')
@allowed(['User', 'Group', 'ServicePrincipal'])
param operatorPrincipalType string

@description('Whether the workspace has to approve its own private endpoints.')
param privateNetworking bool

var roles = loadJsonContent('../roles.json')

resource host 'Microsoft.Storage/storageAccounts@2024-01-01' existing = {
  name: hostAccount
}

resource lake 'Microsoft.Storage/storageAccounts@2024-01-01' existing = {
  name: lakeAccount
}

resource lakeBlobs 'Microsoft.Storage/storageAccounts/blobServices@2024-01-01' existing = {
  parent: lake
  name: 'default'
}

resource ml 'Microsoft.Storage/storageAccounts@2024-01-01' existing = {
  name: workspaceAccount
}

resource bus 'Microsoft.ServiceBus/namespaces@2024-01-01' existing = {
  name: serviceBus
}

resource images 'Microsoft.ContainerRegistry/registries@2023-07-01' existing = {
  name: registry
}

resource secrets 'Microsoft.KeyVault/vaults@2024-11-01' existing = {
  name: vault
}

resource telemetry 'Microsoft.Insights/components@2020-02-02' existing = {
  name: insights
}

resource replicas 'Microsoft.ManagedIdentity/userAssignedIdentities@2024-11-30' existing = {
  name: replicasIdentity
}

// The host account: all of it is the app's own.
var onHost = [
  // The Functions host makes containers for its locks, its keys and Durable Functions, and reads the package of the app.
  { role: roles.storageBlobDataOwner }
  // Durable Functions makes the queues of its task hub.
  { role: roles.storageQueueDataContributor }
  // The ledger is a table, and Durable Functions makes those of its task hub.
  { role: roles.storageTableDataContributor }
]

resource hostGrants 'Microsoft.Authorization/roleAssignments@2022-04-01' = [
  for grant in onHost: {
    name: guid(host.id, appPrincipalId, grant.role)
    scope: host
    properties: {
      roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', grant.role)
      principalId: appPrincipalId
      principalType: 'ServicePrincipal'
    }
  }
]

// The lake: a container for each reader and writer.
var onContainers = [
  // The app reads what is dropped, and changes none of it.
  { container: dropContainer, principal: appPrincipalId, role: roles.storageBlobDataReader }
  // The app keeps artifacts: models, evidence, manifests, quarantined files.
  { container: 'artifacts', principal: appPrincipalId, role: roles.storageBlobDataContributor }
  // Jobs read the models they are measured against.
  { container: 'artifacts', principal: jobsPrincipalId, role: roles.storageBlobDataReader }
  // Replicas load models.
  { container: 'artifacts', principal: replicasPrincipalId, role: roles.storageBlobDataReader }
  // The app appends to the Delta tables.
  { container: 'tables', principal: appPrincipalId, role: roles.storageBlobDataContributor }
  // Jobs read the dataset version they train on.
  { container: 'tables', principal: jobsPrincipalId, role: roles.storageBlobDataReader }
  // The app writes what a run is asked, and collects what it left.
  { container: 'runs', principal: appPrincipalId, role: roles.storageBlobDataContributor }
  // Jobs leave their model, evidence and checkpoints.
  { container: 'runs', principal: jobsPrincipalId, role: roles.storageBlobDataContributor }
  // The app publishes desired states, and reads what replicas report.
  { container: 'serving', principal: appPrincipalId, role: roles.storageBlobDataContributor }
]

resource granted 'Microsoft.Storage/storageAccounts/blobServices/containers@2024-01-01' existing = [
  for grant in onContainers: {
    parent: lakeBlobs
    name: grant.container
  }
]

resource containerGrants 'Microsoft.Authorization/roleAssignments@2022-04-01' = [
  for (grant, i) in onContainers: {
    name: guid(granted[i].id, grant.principal, grant.role)
    scope: granted[i]
    properties: {
      roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', grant.role)
      principalId: grant.principal
      principalType: 'ServicePrincipal'
    }
  }
]

resource serving 'Microsoft.Storage/storageAccounts/blobServices/containers@2024-01-01' existing = {
  parent: lakeBlobs
  name: 'serving'
}

// In `serving` a replica reads everything, writes below `replicas/` (its reports) and `logs/` (requests that are kept) alone,
// and renames nothing: in a Data Lake a report that is renamed would become a desired state. Microsoft's page on what a
// condition on a path takes:
// https://learn.microsoft.com/azure/storage/blobs/storage-auth-abac-security#blob-path
var onlyReports = '''
(
  (
    !(ActionMatches{'Microsoft.Storage/storageAccounts/blobServices/containers/blobs/write'})
    AND !(ActionMatches{'Microsoft.Storage/storageAccounts/blobServices/containers/blobs/add/action'})
    AND !(ActionMatches{'Microsoft.Storage/storageAccounts/blobServices/containers/blobs/delete'})
  )
  OR
  (
    @Resource[Microsoft.Storage/storageAccounts/blobServices/containers/blobs:path] StringLike 'replicas/*'
    OR @Resource[Microsoft.Storage/storageAccounts/blobServices/containers/blobs:path] StringLike 'logs/*'
  )
)
AND
(
  (
    !(ActionMatches{'Microsoft.Storage/storageAccounts/blobServices/containers/blobs/move/action'})
  )
  OR
  (
    @Resource[Microsoft.Storage/storageAccounts/blobServices/containers:name] StringEquals 'none'
  )
)
'''

// Replicas read desired states, and report.
resource replicasReport 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(serving.id, replicasPrincipalId, roles.storageBlobDataContributor)
  scope: serving
  properties: {
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', roles.storageBlobDataContributor)
    principalId: replicasPrincipalId
    principalType: 'ServicePrincipal'
    condition: onlyReports
    conditionVersion: '2.0'
  }
}

resource drops 'Microsoft.Storage/storageAccounts/blobServices/containers@2024-01-01' existing = {
  parent: lakeBlobs
  name: dropContainer
}

// Who provisions may drop the first file.
resource operatorDrops 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (length(operatorPrincipalId) > 0) {
  name: guid(drops.id, operatorPrincipalId, roles.storageBlobDataContributor)
  scope: drops
  properties: {
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', roles.storageBlobDataContributor)
    principalId: operatorPrincipalId
    principalType: operatorPrincipalType
  }
}

// The namespace: queue by queue.
var onQueues = [
  // The app takes commands.
  { queue: 'commands', role: roles.serviceBusDataReceiver }
  // The app takes the events that Event Grid delivers.
  { queue: 'events', role: roles.serviceBusDataReceiver }
  // The app answers commands.
  { queue: 'replies', role: roles.serviceBusDataSender }
]

resource queues 'Microsoft.ServiceBus/namespaces/queues@2024-01-01' existing = [
  for grant in onQueues: {
    parent: bus
    name: grant.queue
  }
]

resource queueGrants 'Microsoft.Authorization/roleAssignments@2022-04-01' = [
  for (grant, i) in onQueues: {
    name: guid(queues[i].id, appPrincipalId, grant.role)
    scope: queues[i]
    properties: {
      roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', grant.role)
      principalId: appPrincipalId
      principalType: 'ServicePrincipal'
    }
  }
]

// The app and its host send telemetry; keys are off.
resource appTells 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(telemetry.id, appPrincipalId, roles.monitoringMetricsPublisher)
  scope: telemetry
  properties: {
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', roles.monitoringMetricsPublisher)
    principalId: appPrincipalId
    principalType: 'ServicePrincipal'
  }
}

// Replicas send what they did with a model, under the trace of the run that made it.
resource replicasTell 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(telemetry.id, replicasPrincipalId, roles.monitoringMetricsPublisher)
  scope: telemetry
  properties: {
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', roles.monitoringMetricsPublisher)
    principalId: replicasPrincipalId
    principalType: 'ServicePrincipal'
  }
}

// The app makes the endpoint when it is missing, and gives it this identity.
resource appHandsOn 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(replicas.id, appPrincipalId, roles.managedIdentityOperator)
  scope: replicas
  properties: {
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', roles.managedIdentityOperator)
    principalId: appPrincipalId
    principalType: 'ServicePrincipal'
  }
}

// Who pulls images.
var onRegistry = [
  // The cluster pulls the training image as this identity.
  { principal: jobsPrincipalId }
  // The endpoint pulls the serving image as this identity.
  { principal: replicasPrincipalId }
]

resource registryGrants 'Microsoft.Authorization/roleAssignments@2022-04-01' = [
  for grant in onRegistry: {
    name: guid(images.id, grant.principal, roles.acrPull)
    scope: images
    properties: {
      roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', roles.acrPull)
      principalId: grant.principal
      principalType: 'ServicePrincipal'
    }
  }
]

// Azure ML's own account: code snapshots and logs of its jobs, the log of its endpoint. No data of the platform lies there.
var onWorkspaceAccount = [
  // Azure ML writes the logs of a job as the identity of its cluster.
  { principal: jobsPrincipalId, role: roles.storageBlobDataContributor }
  // Azure ML reads what a deployment is made of as the identity of its endpoint.
  { principal: replicasPrincipalId, role: roles.storageBlobDataReader }
  // The app shows the logs of jobs.
  { principal: appPrincipalId, role: roles.storageBlobDataReader }
  // The workspace reads and writes its own files.
  { principal: workspacePrincipalId, role: roles.storageBlobDataContributor }
  // The workspace makes its containers and the file share of its notebooks, and approves its private endpoint.
  { principal: workspacePrincipalId, role: roles.contributor }
]

resource workspaceAccountGrants 'Microsoft.Authorization/roleAssignments@2022-04-01' = [
  for grant in onWorkspaceAccount: {
    name: guid(ml.id, grant.principal, grant.role)
    scope: ml
    properties: {
      roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', grant.role)
      principalId: grant.principal
      principalType: 'ServicePrincipal'
    }
  }
]

// What Azure ML asks for its own identity on what it is made with:
// https://learn.microsoft.com/azure/machine-learning/how-to-identity-based-service-authentication#workspace
var onVault = [
  // The workspace approves its private endpoint.
  { role: roles.contributor }
  // The workspace keeps its own secrets here, and nobody else any.
  { role: roles.keyVaultAdministrator }
]

resource vaultGrants 'Microsoft.Authorization/roleAssignments@2022-04-01' = [
  for grant in onVault: {
    name: guid(secrets.id, workspacePrincipalId, grant.role)
    scope: secrets
    properties: {
      roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', grant.role)
      principalId: workspacePrincipalId
      principalType: 'ServicePrincipal'
    }
  }
]

// The workspace reads images for its cluster and endpoint, and approves its private endpoint.
resource workspaceReadsImages 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(images.id, workspacePrincipalId, roles.contributor)
  scope: images
  properties: {
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', roles.contributor)
    principalId: workspacePrincipalId
    principalType: 'ServicePrincipal'
  }
}

// Azure ML asks for it on the Application Insights that the workspace is made with.
resource workspaceTells 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(telemetry.id, workspacePrincipalId, roles.contributor)
  scope: telemetry
  properties: {
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', roles.contributor)
    principalId: workspacePrincipalId
    principalType: 'ServicePrincipal'
  }
}

// The managed network of the workspace approves its private endpoint to the lake; it gives no data.
resource workspaceReachesLake 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (privateNetworking) {
  name: guid(lake.id, workspacePrincipalId, roles.networkConnectionApprover)
  scope: lake
  properties: {
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', roles.networkConnectionApprover)
    principalId: workspacePrincipalId
    principalType: 'ServicePrincipal'
  }
}
