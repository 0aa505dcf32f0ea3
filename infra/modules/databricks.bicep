// An Azure Databricks workspace, and the identity that Unity Catalog reaches the containers with.
@description('Region.')
param location string

@description('Makes names unique.')
param token string

@description('Tags of every resource.')
param tags object

@description('Account of the data.')
param lakeAccount string

var roles = loadJsonContent('../roles.json')

resource lake 'Microsoft.Storage/storageAccounts@2024-01-01' existing = {
  name: lakeAccount
}

resource blobs 'Microsoft.Storage/storageAccounts/blobServices@2024-01-01' existing = {
  parent: lake
  name: 'default'
}

resource workspace 'Microsoft.Databricks/workspaces@2024-05-01' = {
  name: 'dbw-${token}'
  location: location
  tags: tags
  // Unity Catalog and its volumes need premium.
  sku: { name: 'premium' }
  properties: {
    managedResourceGroupId: subscriptionResourceId('Microsoft.Resources/resourceGroups', 'rg-dbw-${token}')
    publicNetworkAccess: 'Enabled'
    parameters: { enableNoPublicIp: { value: true } }
  }
}

resource connector 'Microsoft.Databricks/accessConnectors@2024-05-01' = {
  name: 'dbac-${token}'
  location: location
  tags: tags
  identity: { type: 'SystemAssigned' }
  properties: {}
}

var grants = [
  // Databricks jobs read the models they are measured against, through the volume `artifacts`.
  { container: 'artifacts', role: roles.storageBlobDataReader }
  // Databricks jobs read the dataset version they train on, through the volume `tables`.
  { container: 'tables', role: roles.storageBlobDataReader }
  // Databricks jobs leave their model and evidence, through the volume `runs`.
  { container: 'runs', role: roles.storageBlobDataContributor }
]

resource granted 'Microsoft.Storage/storageAccounts/blobServices/containers@2024-01-01' existing = [
  for grant in grants: {
    parent: blobs
    name: grant.container
  }
]

resource connectorGrants 'Microsoft.Authorization/roleAssignments@2022-04-01' = [
  for (grant, i) in grants: {
    name: guid(granted[i].id, connector.id, grant.role)
    scope: granted[i]
    properties: {
      roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', grant.role)
      principalId: connector.identity.principalId
      principalType: 'ServicePrincipal'
    }
  }
]

output host string = 'https://${workspace.properties.workspaceUrl}'
output connectorId string = connector.id
