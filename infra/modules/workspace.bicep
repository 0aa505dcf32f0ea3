// Azure Machine Learning: the workspace, its datastores over the lake, the cluster that trains and the endpoint that answers.
@description('Region.')
param location string

@description('Name of the workspace.')
param name string

@description('Tags of every resource.')
param tags object

@description('Resource id of the workspace\'s own storage account.')
param storageAccountId string

@description('Resource id of the vault.')
param vaultId string

@description('Resource id of Application Insights.')
param insightsId string

@description('Resource id of the registry.')
param registryId string

@description('Resource id of the account of the data.')
param lakeId string

@description('Name of the account of the data.')
param lakeName string

@description('Resource id of Log Analytics.')
param logsId string

@description('Identity of the workspace.')
param workspaceIdentityId string

@description('Principal of the workspace.')
param workspacePrincipalId string

@description('Identity that jobs run as.')
param jobsIdentityId string

@description('Identity that replicas run as.')
param replicasIdentityId string

@description('Principal that replicas run as.')
param replicasPrincipalId string

@description('Principal of the app.')
param appPrincipalId string

@description('Name of the cluster.')
param clusterName string

@description('Machine of the cluster.')
param gpuVmSize string

@description('The most nodes at a time.')
@minValue(1)
param gpuMaxNodes int

@description('How long a node waits for another job before it goes (ISO 8601).')
param gpuIdleTime string

@description('Whether nodes are low priority: cheaper, and they can be taken away at any time.')
param lowPriority bool

@description('Name of the online endpoint.')
param endpointName string

@description('Whether to make the endpoint. A PUT without traffic takes all traffic away, so only while there is none.')
param createEndpoint bool

@description('Whether the workspace is reached through private endpoints only, and its cluster reaches only what is approved.')
param privateNetworking bool

var roles = loadJsonContent('../roles.json')

resource workspace 'Microsoft.MachineLearningServices/workspaces@2025-12-01' = {
  name: name
  location: location
  tags: tags
  kind: 'Default'
  sku: { name: 'Basic', tier: 'Basic' }
  identity: { type: 'UserAssigned', userAssignedIdentities: { '${workspaceIdentityId}': {} } }
  properties: {
    friendlyName: name
    primaryUserAssignedIdentity: workspaceIdentityId
    storageAccount: storageAccountId
    keyVault: vaultId
    applicationInsights: insightsId
    containerRegistry: registryId
    systemDatastoresAuthMode: 'Identity'
    v1LegacyMode: false
    publicNetworkAccess: privateNetworking ? 'Disabled' : 'Enabled'
    // No rule names a host by its name: such rules would bring a firewall that costs by the hour.
    managedNetwork: privateNetworking
      ? {
          isolationMode: 'AllowOnlyApprovedOutbound'
          outboundRules: {
            lakeBlob: {
              type: 'PrivateEndpoint'
              category: 'UserDefined'
              destination: { serviceResourceId: lakeId, subresourceTarget: 'blob', sparkEnabled: false }
            }
            lakeDfs: {
              type: 'PrivateEndpoint'
              category: 'UserDefined'
              destination: { serviceResourceId: lakeId, subresourceTarget: 'dfs', sparkEnabled: false }
            }
          }
        }
      : { isolationMode: 'AllowInternetOutbound' }
  }
}

// Names as in dropforge/adapters/azure/places.py. Without credentials a job reads and writes as the cluster's identity.
resource datastores 'Microsoft.MachineLearningServices/workspaces/datastores@2025-12-01' = [
  for container in ['artifacts', 'tables', 'runs']: {
    parent: workspace
    name: 'dropforge_${container}'
    properties: {
      datastoreType: 'AzureBlob'
      accountName: lakeName
      containerName: container
      endpoint: environment().suffixes.storage
      protocol: 'https'
      serviceDataAccessAuthIdentity: 'None'
      credentials: { credentialsType: 'None' }
    }
  }
]

resource cluster 'Microsoft.MachineLearningServices/workspaces/computes@2025-12-01' = {
  parent: workspace
  name: clusterName
  location: location
  tags: tags
  identity: { type: 'UserAssigned', userAssignedIdentities: { '${jobsIdentityId}': {} } }
  properties: {
    computeType: 'AmlCompute'
    disableLocalAuth: true
    properties: {
      vmSize: gpuVmSize
      vmPriority: lowPriority ? 'LowPriority' : 'Dedicated'
      osType: 'Linux'
      enableNodePublicIp: false
      remoteLoginPortPublicAccess: 'Disabled'
      scaleSettings: { minNodeCount: 0, maxNodeCount: gpuMaxNodes, nodeIdleTimeBeforeScaleDown: gpuIdleTime }
    }
  }
}

// From here on the endpoint is the app's: deployments, traffic and mirror are its decisions.
resource endpoint 'Microsoft.MachineLearningServices/workspaces/onlineEndpoints@2025-12-01' = if (createEndpoint) {
  parent: workspace
  name: endpointName
  location: location
  tags: tags
  kind: 'Managed'
  identity: { type: 'UserAssigned', userAssignedIdentities: { '${replicasIdentityId}': {} } }
  properties: {
    authMode: 'AADToken'
    publicNetworkAccess: privateNetworking ? 'Disabled' : 'Enabled'
  }
  dependsOn: [replicasMeasure]
}

// Azure ML writes the metrics of the endpoint as its identity.
resource replicasMeasure 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(workspace.id, replicasPrincipalId, roles.azureMLMetricsWriter)
  scope: workspace
  properties: {
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', roles.azureMLMetricsWriter)
    principalId: replicasPrincipalId
    principalType: 'ServicePrincipal'
  }
}

// The app submits jobs, registers models and moves deployments; it makes no compute and changes no workspace.
resource appUses 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(workspace.id, appPrincipalId, roles.azureMLDataScientist)
  scope: workspace
  properties: {
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', roles.azureMLDataScientist)
    principalId: appPrincipalId
    principalType: 'ServicePrincipal'
  }
}

// A workspace with an identity of its own needs it on itself.
resource workspaceItself 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(workspace.id, workspacePrincipalId, roles.contributor)
  scope: workspace
  properties: {
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', roles.contributor)
    principalId: workspacePrincipalId
    principalType: 'ServicePrincipal'
  }
}

// What the containers of the endpoint said.
resource logged 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = if (createEndpoint) {
  name: 'to-log-analytics'
  scope: endpoint
  properties: {
    workspaceId: logsId
    logs: [
      { category: 'AmlOnlineEndpointConsoleLog', enabled: true }
      { category: 'AmlOnlineEndpointEventLog', enabled: true }
    ]
  }
}

output id string = workspace.id
output name string = workspace.name
output clusterName string = cluster.name
output endpointName string = endpointName
