// The Durable Task Scheduler, where flows keep their history when `durableBackend` says so.
@description('Region.')
param location string

@description('Name of the scheduler.')
param name string

@description('Tags of every resource.')
param tags object

@description('Principal of the identity that the app runs as.')
param appPrincipalId string

@description('Client id of that identity.')
param appClientId string

var roles = loadJsonContent('../roles.json')

resource scheduler 'Microsoft.DurableTask/schedulers@2025-11-01' = {
  name: name
  location: location
  tags: tags
  properties: {
    // It opens to identities only, from any address; it has no private endpoint here.
    ipAllowlist: ['0.0.0.0/0']
    sku: { name: 'Consumption' }
  }
}

resource hub 'Microsoft.DurableTask/schedulers/taskHubs@2025-11-01' = {
  parent: scheduler
  name: 'dropforge'
  properties: {}
}

// The app starts, runs and reads its flows.
resource appRunsFlows 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(hub.id, appPrincipalId, roles.durableTaskDataContributor)
  scope: hub
  properties: {
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', roles.durableTaskDataContributor)
    principalId: appPrincipalId
    principalType: 'ServicePrincipal'
  }
}

output hubName string = hub.name
output address string = 'Endpoint=${scheduler.properties.endpoint};Authentication=ManagedIdentity;ClientID=${appClientId}'
