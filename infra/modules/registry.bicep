// The registry of the training and serving images.
@description('Region.')
param location string

@description('Name of the registry, letters and digits.')
param name string

@description('Tags of every resource.')
param tags object

@description('Whether only private endpoints and trusted Azure services reach the registry. It takes the tier Premium.')
param privateNetworking bool

resource registry 'Microsoft.ContainerRegistry/registries@2023-07-01' = {
  name: name
  location: location
  tags: tags
  sku: { name: privateNetworking ? 'Premium' : 'Basic' }
  properties: {
    adminUserEnabled: false
    publicNetworkAccess: privateNetworking ? 'Disabled' : 'Enabled'
    networkRuleBypassOptions: 'AzureServices'
  }
}

output id string = registry.id
output name string = registry.name
output server string = registry.properties.loginServer
