// The private endpoints of everything the app talks to, and their names in the zones.
@description('Region.')
param location string

@description('Makes names unique.')
param token string

@description('Tags of every resource.')
param tags object

@description('Subnet that they get their addresses from.')
param subnetId string

@description('Ids of the zones, as network.bicep gives them.')
param zones object

@description('Resource id of the account of the Functions host.')
param hostAccountId string

@description('Resource id of the account of the data.')
param lakeId string

@description('Resource id of the account of the workspace.')
param workspaceAccountId string

@description('Resource id of the Service Bus namespace.')
param serviceBusId string

@description('Resource id of the vault.')
param vaultId string

@description('Resource id of the registry.')
param registryId string

@description('Resource id of the Event Grid topic.')
param topicId string

@description('Resource id of the Azure ML workspace.')
param workspaceId string

@description('Resource id of the function app.')
param appId string

// Event Grid's own topics, Log Analytics and Application Insights are not among them: the first two deliver as trusted
// services, and telemetry goes to the public address, with tokens only.
var wanted = [
  { name: 'host-blob', target: hostAccountId, group: 'blob', zones: [zones.blob] }
  { name: 'host-queue', target: hostAccountId, group: 'queue', zones: [zones.queue] }
  { name: 'host-table', target: hostAccountId, group: 'table', zones: [zones.table] }
  { name: 'lake-blob', target: lakeId, group: 'blob', zones: [zones.blob] }
  { name: 'lake-dfs', target: lakeId, group: 'dfs', zones: [zones.dfs] }
  { name: 'ml-blob', target: workspaceAccountId, group: 'blob', zones: [zones.blob] }
  { name: 'bus', target: serviceBusId, group: 'namespace', zones: [zones.serviceBus] }
  { name: 'vault', target: vaultId, group: 'vault', zones: [zones.vault] }
  { name: 'registry', target: registryId, group: 'registry', zones: [zones.registry] }
  { name: 'topic', target: topicId, group: 'topic', zones: [zones.eventGrid] }
  { name: 'ml', target: workspaceId, group: 'amlworkspace', zones: [zones.workspaceApi, zones.workspaceNotebooks] }
  { name: 'app', target: appId, group: 'sites', zones: [zones.sites] }
]

resource endpoints 'Microsoft.Network/privateEndpoints@2024-05-01' = [
  for each in wanted: {
    name: 'pe-${each.name}-${token}'
    location: location
    tags: tags
    properties: {
      subnet: { id: subnetId }
      privateLinkServiceConnections: [
        {
          name: each.name
          properties: { privateLinkServiceId: each.target, groupIds: [each.group] }
        }
      ]
    }
  }
]

resource names 'Microsoft.Network/privateEndpoints/privateDnsZoneGroups@2024-05-01' = [
  for (each, i) in wanted: {
    parent: endpoints[i]
    name: 'default'
    properties: {
      privateDnsZoneConfigs: [
        for (zone, j) in each.zones: {
          name: 'zone-${j}'
          properties: { privateDnsZoneId: zone }
        }
      ]
    }
  }
]
